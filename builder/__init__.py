"""The builder plans, trains, writes and verifies a zoo.

It is for maintainers. It may import nws_dataset, never the other way round.
"""
