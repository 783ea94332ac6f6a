"""The publisher, the writer, the protocol of a store, and readers in this process."""
