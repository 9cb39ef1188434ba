"""python -m training.bulk IN OUT: ``score-files``, without loading what only training needs."""

from training.bulk.command import main

if __name__ == "__main__":
    main()
