"""What becomes of an item's outcome on its way to the caller."""
