"""What a run's traces say: the lives of keys, where accesses were served, how well intents were timed."""
