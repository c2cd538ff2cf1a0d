import Foundation

#if canImport(ImageIO)
import CoreGraphics
import CoreImage
import CoreVideo
#endif

/// An image as an app has it.
///
/// Sendable, because nothing writes to it here: leave a pixel buffer as it is until it is classified.
public enum ImageInput: @unchecked Sendable {
    /// An image file of any format that the system reads; elsewhere than on Apple's systems a PPM file.
    case url(URL)
    /// Pixels in memory.
    case pixels(PixelImage)
    #if canImport(ImageIO)
    case cgImage(CGImage)
    case ciImage(CIImage)
    case pixelBuffer(CVPixelBuffer)
    #endif

    /// The image, decoded.
    public func decoded(mostPixels: Int = PixelImage.mostPixels) throws -> PixelImage {
        switch self {
        case .url(let url): try PixelImage(contentsOf: url, mostPixels: mostPixels)
        case .pixels(let image): image
        #if canImport(ImageIO)
        case .cgImage(let image): try PixelImage(image)
        case .ciImage(let image): try PixelImage(image)
        case .pixelBuffer(let buffer): try PixelImage(buffer)
        #endif
        }
    }
}
