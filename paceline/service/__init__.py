"""What every service's process has: settings, telemetry, and its share of the machine."""
