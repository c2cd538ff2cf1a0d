/* From an image of any size to the pixels that a graph takes, as Pillow computes them. Needs no MLX. */
#ifndef CONVNEXTV2_IMAGE_H
#define CONVNEXTV2_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define CONVNEXTV2_API __attribute__((visibility("default")))
#else
#define CONVNEXTV2_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* How a call went. Anything but CONVNEXTV2_OK comes with a sentence from convnextv2_message(). */
typedef enum convnextv2_status {
  CONVNEXTV2_OK = 0,
  CONVNEXTV2_INVALID_ARGUMENT = 1, /* the call itself makes no sense: a null pointer, a row shorter than its pixels */
  CONVNEXTV2_NOT_FOUND = 2,        /* a file or folder is not there or cannot be read */
  CONVNEXTV2_BAD_DESCRIPTION = 3,  /* model.json is not a description that this library understands */
  CONVNEXTV2_WRONG_VERSION = 4,    /* the graph is for another version of MLX */
  CONVNEXTV2_WRONG_DEVICE = 5,     /* the graph is for a device that is not here */
  CONVNEXTV2_DAMAGED = 6,          /* the graph is not the file that was exported: cut short or changed */
  CONVNEXTV2_WRONG_SHAPE = 7,      /* the graph was not exported for this number or size of images */
  CONVNEXTV2_STREAM_TAKEN = 8,     /* other code of the process used MLX first: see convnextv2_open() */
  CONVNEXTV2_BAD_IMAGE = 9,        /* an image cannot be decoded, or is too narrow to be resized */
  CONVNEXTV2_NO_MEMORY = 10,       /* there is not enough memory */
  CONVNEXTV2_FAILED = 11           /* MLX reported something else */
} convnextv2_status;

/* The sentence of this thread's last failed call, in UTF-8; valid until its next one. */
CONVNEXTV2_API const char* convnextv2_message(void);

/* An image in the caller's memory: 8 bits each of red, green and blue, in sRGB, from top to bottom. */
typedef struct convnextv2_image {
  const uint8_t* pixels;
  size_t width;
  size_t height;
  size_t row_bytes;   /* from one row to the next: at least width * pixel_bytes */
  size_t pixel_bytes; /* 3, or 4 where a byte that is ignored follows each pixel */
} convnextv2_image;

/* Pillow's filters, by Pillow's numbers. */
typedef enum convnextv2_filter {
  CONVNEXTV2_LANCZOS = 1,
  CONVNEXTV2_BILINEAR = 2,
  CONVNEXTV2_BICUBIC = 3,
  CONVNEXTV2_BOX = 4,
  CONVNEXTV2_HAMMING = 5
} convnextv2_filter;

/* The part "preprocessing" of model.json. */
typedef struct convnextv2_preparation {
  int resizes;       /* 0: images come at crop_width x crop_height already */
  int filter;        /* a convnextv2_filter */
  int pillow;        /* the major version of Pillow to be equal to: 13 changed the order of rows and columns */
  size_t short_side; /* resize so that the short side has this length; 0: to width x height instead */
  size_t width;
  size_t height;
  size_t crop_width; /* then cut this out of the middle: the size of the result */
  size_t crop_height;
  int halves_to_even; /* a margin of a half becomes 0: the next lower number, 1: the next even one */
} convnextv2_preparation;

/* Resize and crop: crop_width * crop_height * 3 bytes into rgb, equal to Pillow's byte for byte.
 * Returns CONVNEXTV2_INVALID_ARGUMENT, CONVNEXTV2_BAD_IMAGE or CONVNEXTV2_NO_MEMORY. Safe from any thread. */
CONVNEXTV2_API convnextv2_status convnextv2_prepare(const convnextv2_image* image,
                                                    const convnextv2_preparation* preparation, uint8_t* rgb);

#ifdef __cplusplus
}
#endif

#endif
