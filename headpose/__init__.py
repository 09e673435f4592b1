"""What the scripts of head pose estimation stand on."""
