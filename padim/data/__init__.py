"""Images: where they lie, how they are read, resized and made."""
