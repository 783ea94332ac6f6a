"""Where positions come from, and the actor that has their symbols followed."""
