"""What rbee-serve is compared with, written as a plain user of each library would write it."""
