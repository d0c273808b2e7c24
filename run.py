"""The program: `python run.py [key=value ...]`, `python run.py -m axis=a,b,c`, `torchrun ... run.py ...`."""

from fovea_detr.__main__ import main

if __name__ == "__main__":
    main()
