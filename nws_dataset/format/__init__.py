"""The format of a zoo: recipes, subsets, layouts, columns, shards, nws.json, and the plain network."""
