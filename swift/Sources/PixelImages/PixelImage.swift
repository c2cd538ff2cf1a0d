import Foundation

/// An image as the classifier takes it: 8 bits each of red, green and blue, row by row from the top.
public struct PixelImage: Sendable {
    public let width: Int
    public let height: Int
    /// 3 bytes a pixel, or 4 of which the last is ignored.
    public let bytesPerPixel: Int
    public let pixels: [UInt8]

    /// - Precondition: there are `width * height * bytesPerPixel` bytes, and 3 or 4 of them a pixel.
    public init(width: Int, height: Int, bytesPerPixel: Int = 3, pixels: [UInt8]) {
        precondition(width > 0 && height > 0 && (bytesPerPixel == 3 || bytesPerPixel == 4))
        precondition(pixels.count == width * height * bytesPerPixel)
        self.width = width
        self.height = height
        self.bytesPerPixel = bytesPerPixel
        self.pixels = pixels
    }
}

/// An image file that cannot be decoded.
public struct ImageFileError: LocalizedError {
    public let path: String
    public var errorDescription: String? { "\(path) is not an image that can be read" }
}

#if canImport(ImageIO)
import CoreGraphics
import ImageIO

extension PixelImage {
    /// Decode an image file, turned as its EXIF data say and laid over white, as the Python package does.
    ///
    /// The stored numbers are kept, whatever the colour profile: Python keeps them too. JPEG decoders differ by a little.
    public init(contentsOf url: URL) throws {
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
            let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = properties[kCGImagePropertyPixelWidth] as? Int,
            let height = properties[kCGImagePropertyPixelHeight] as? Int
        else { throw ImageFileError(path: url.path) }
        // A "thumbnail" of full size: the way to have ImageIO turn the image.
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,
            kCGImageSourceCreateThumbnailWithTransform: true,
            kCGImageSourceThumbnailMaxPixelSize: max(width, height),
        ]
        guard let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
            throw ImageFileError(path: url.path)
        }
        try self.init(image, path: url.path)
    }

    init(_ image: CGImage, path: String) throws {
        // In the image's own colours nothing is converted; only RGB spaces can be drawn into.
        let own = image.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
        guard let space = own ?? CGColorSpace(name: CGColorSpace.sRGB) else { throw ImageFileError(path: path) }
        var pixels = [UInt8](repeating: 255, count: image.width * image.height * 4)  // white
        let drawn = pixels.withUnsafeMutableBytes { bytes in
            let context = CGContext(
                data: bytes.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                bytesPerRow: image.width * 4, space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            context?.interpolationQuality = .none
            context?.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return context != nil
        }
        guard drawn else { throw ImageFileError(path: path) }
        self.init(width: image.width, height: image.height, bytesPerPixel: 4, pixels: pixels)
    }
}
#else
extension PixelImage {
    /// Read a binary PPM file ("P6" with 8 bits a channel), where there is no ImageIO.
    public init(contentsOf url: URL) throws {
        let data = [UInt8](try Data(contentsOf: url))
        var position = 0
        func word() -> String {
            while position < data.count, data[position] == 10 || data[position] == 32 { position += 1 }
            let start = position
            while position < data.count, data[position] > 32 { position += 1 }
            return String(decoding: data[start..<position], as: UTF8.self)
        }
        guard word() == "P6", let width = Int(word()), let height = Int(word()), word() == "255",
            (1...65_535).contains(width), (1...65_535).contains(height),
            data.count - position - 1 == width * height * 3
        else { throw ImageFileError(path: url.path) }
        self.init(width: width, height: height, pixels: Array(data[(position + 1)...]))
    }
}
#endif
