"""The builder: plans, trains, writes and verifies a zoo.

For maintainers; it may import nws_dataset, never the other way round.
"""
