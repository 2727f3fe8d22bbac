"""What a sentence claims: tags, nouns, denials, suppositions."""
