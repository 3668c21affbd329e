"""What has changed in a guest since the last look."""
