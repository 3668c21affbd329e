"""Events of a guest as they are heard: the thread that looks, the stream that tells."""
