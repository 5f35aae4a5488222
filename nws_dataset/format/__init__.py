"""The format of a zoo: recipes, subsets, columns, shards and nws.json."""
