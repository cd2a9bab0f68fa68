"""`--time`: how fast this machine is, and how many tokens calibration and recovery get of the time."""
