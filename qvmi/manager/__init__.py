"""The manager: what starts, watches and ends the parts that belong to a machine being watched."""
