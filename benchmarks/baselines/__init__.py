"""The programs that rbee-serve is compared with, as a user of each library would write them."""
