"""Out: the publisher and writer, the store's protocol, and readers in this process."""
