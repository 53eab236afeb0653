"""The transports that come with adapm; the interface they implement is `adapm.transport.Transport`."""
