"""Looking at what a worker's hash means, and changing it, without running anything."""
