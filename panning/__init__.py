"""panning: find, before training, which weights of a network may go."""
