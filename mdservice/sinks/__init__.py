"""Out: the price store with its writer and publisher, and readers in this process."""
