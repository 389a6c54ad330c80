"""An item's outcome, made ready to be sent: encoded, its files taken, within the size of a response."""
