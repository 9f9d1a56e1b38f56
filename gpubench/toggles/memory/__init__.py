"""What the device has to hold at once."""
