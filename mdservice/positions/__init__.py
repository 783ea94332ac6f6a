"""The sources of positions, their cache, and the actor that subscribes to their symbols."""
