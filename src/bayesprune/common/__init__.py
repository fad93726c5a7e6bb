"""What every room shares: argument checks."""
