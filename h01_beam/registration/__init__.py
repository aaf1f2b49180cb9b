"""What stitching and alignment are made of: coordinate maps, correlation, patch flow."""
