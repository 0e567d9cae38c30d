"""What papers of the course claim, tried in miniature where no figure of the book does so already."""
