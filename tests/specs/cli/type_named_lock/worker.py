import sys

print("ran", sys.argv[1])
