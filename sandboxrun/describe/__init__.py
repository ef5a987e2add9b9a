"""What a worker's hash means, and changes of it, without running anything."""
