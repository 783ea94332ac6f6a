#!/bin/sh
# Make secrets/: a password for Valkey, a token for the API, a password for Grafana, and the settings
# of the service, which you edit. It changes nothing that is there already.
set -eu
cd "$(dirname "$0")"
umask 077
if [ -e secrets ]; then
    echo "secrets/ is there already. For new ones, save your settings from it, and remove it." >&2
    exit 1
fi
mkdir secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
valkey=$(random)
token=$(random)

# Each is mounted into a container of another user. The folder keeps the other users out.
printf '%s' "$token" > secrets/api_token
printf '%s' "$(random)" > secrets/grafana_password
printf 'requirepass %s\n' "$valkey" > secrets/valkey.conf
chmod 644 secrets/*

cat > secrets/mdservice.env <<END
# The first run is on the simulator. For a real account, take this line away and set the keys.
MDSERVICE_FEED=simulator
#MDSERVICE_FEED=iex
#ALPACA_API_KEY=
#ALPACA_SECRET_KEY=
#MDSERVICE_SYMBOLS=AAPL,MSFT
#MDSERVICE_POSITIONS=alpaca

#MDSERVICE_LIMITS=total day_pnl < -2000; total exposure > 100000
#MDSERVICE_ALERTS=total pct < -2
#MDSERVICE_ALERT_WEBHOOK=

# Other programs share the connection at 127.0.0.1:8765 with such a pair of keys.
#MDSERVICE_RELAY=0.0.0.0:8765
#MDSERVICE_RELAY_KEYS=KEY:SECRET

# Record every message.
#MDSERVICE_JOURNAL=/var/lib/mdservice/journal
#MDSERVICE_JOURNAL_DAYS=30

MDSERVICE_REDIS_URL=redis://:$valkey@valkey:6379
MDSERVICE_API_TOKEN=$token
END
