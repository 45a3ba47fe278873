"""What a device can do at most: matrix rates and copy bandwidth, measured, never from a datasheet."""
