"""Images of the tissue: tiles, contrast, masks and pyramids."""
