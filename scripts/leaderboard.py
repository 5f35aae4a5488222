"""Put all methods of a zoo on one HTML page: python scripts/leaderboard.py ZOO"""

from nws_dataset.experiments.leaderboard import main

if __name__ == "__main__":
    main()
