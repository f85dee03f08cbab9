"""What a run needs before it runs: operations, memory on each device, traffic between devices, time."""
