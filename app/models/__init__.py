"""What a directory becomes before anything is encoded with it: opened, converted, loaded, checked."""
