#include "../include/convnextv2_image.h"
