"""Quality side by side: methods, retentions, calibration."""
