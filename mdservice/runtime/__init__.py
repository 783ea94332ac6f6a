"""What an actor is, who restarts it, and who notices that it has stopped moving."""
