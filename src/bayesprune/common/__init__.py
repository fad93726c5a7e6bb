"""What every room shares: argument checks, and how files are written, read, sealed and locked."""
