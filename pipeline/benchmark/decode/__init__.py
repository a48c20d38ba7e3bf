"""Reading frames side by side: ours, decord, PyAV and torchcodec, each in a process of its own."""
