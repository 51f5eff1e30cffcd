"""Which kept weights are alive, and how a mask is mended in which some are dead."""
