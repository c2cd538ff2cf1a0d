"""How good a classifier is: accuracies, errors by class, calibration and mistakes, on folders of labelled images."""
