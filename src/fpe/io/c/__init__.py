"""Export as C99 for microcontrollers."""
