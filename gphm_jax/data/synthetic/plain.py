"""What a head wears without the proxies' package: eyes, teeth, a hair cap and a garment made of the base mesh."""
