#if canImport(ImageIO)
import CoreGraphics
import CoreImage
import CoreVideo
import Foundation
import ImageIO

extension PixelImage {
    /// Decode an image file, turned as its EXIF data say and laid over white, as the Python package does.
    ///
    /// The stored numbers are kept, whatever the colour profile: Python keeps them too. JPEG decoders differ by a little.
    ///
    /// - Throws: ``ConvNeXtV2Error`` where it is missing, no image, or has more than `mostPixels`.
    public init(contentsOf url: URL, mostPixels: Int = PixelImage.mostPixels) throws {
        guard FileManager.default.fileExists(atPath: url.path) else {
            throw ConvNeXtV2Error.notFound("no such image: \(url.path)")
        }
        let unreadable = ConvNeXtV2Error.image("\(url.path) is not an image, or of a format that is not read")
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
            let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = properties[kCGImagePropertyPixelWidth] as? Int,
            let height = properties[kCGImagePropertyPixelHeight] as? Int, width > 0, height > 0
        else { throw unreadable }
        guard width <= mostPixels / height else {
            throw ConvNeXtV2Error.image("\(url.path) has too many pixels, \(width) x \(height): scale it down")
        }
        // A "thumbnail" of full size: the way to have ImageIO turn the image.
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,
            kCGImageSourceCreateThumbnailWithTransform: true,
            kCGImageSourceThumbnailMaxPixelSize: max(width, height),
        ]
        guard let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
            throw unreadable
        }
        try self.init(image)
    }

    /// The image as it lies in memory, laid over white. An orientation is the caller's to apply.
    public init(_ image: CGImage) throws {
        // In the image's own colours nothing is converted; only RGB spaces can be drawn into.
        let own = image.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
        let space = own ?? CGColorSpaceCreateDeviceRGB()
        var pixels = [UInt8](repeating: 255, count: image.width * image.height * 4)  // white
        let drawn = pixels.withUnsafeMutableBytes { bytes in
            let context = CGContext(
                data: bytes.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                bytesPerRow: image.width * 4, space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            context?.interpolationQuality = .none
            context?.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return context != nil
        }
        guard drawn else { throw ConvNeXtV2Error.image("the image cannot be drawn as 8-bit RGB") }
        try self.init(width: image.width, height: image.height, bytesPerPixel: 4, pixels: pixels)
    }

    /// The image at its own size: Core Image does not resize, because it does so in another way than Pillow.
    public init(_ image: CIImage) throws {
        let extent = image.extent.integral
        guard !extent.isInfinite, !extent.isEmpty, extent.width * extent.height <= Double(Self.mostPixels),
            let drawn = CIContext().createCGImage(image, from: extent)
        else { throw ConvNeXtV2Error.image("a CIImage must have an extent that is finite and not empty") }
        try self.init(drawn)
    }

    /// A frame of a camera or film. 32-bit BGRA is copied as it is; other formats go through Core Image.
    public init(_ buffer: CVPixelBuffer) throws {
        guard CVPixelBufferGetPixelFormatType(buffer) == kCVPixelFormatType_32BGRA else {
            try self.init(CIImage(cvPixelBuffer: buffer))
            return
        }
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        let width = CVPixelBufferGetWidth(buffer)
        let height = CVPixelBufferGetHeight(buffer)
        let rowBytes = CVPixelBufferGetBytesPerRow(buffer)
        guard let base = CVPixelBufferGetBaseAddress(buffer) else {
            throw ConvNeXtV2Error.image("the pixel buffer has no memory to read")
        }
        var pixels: [UInt8] = []
        pixels.reserveCapacity(width * height * 3)
        for row in 0..<height {
            let bytes = UnsafeRawBufferPointer(start: base + row * rowBytes, count: width * 4)
            for start in stride(from: 0, to: width * 4, by: 4) {
                pixels.append(bytes[start + 2])
                pixels.append(bytes[start + 1])
                pixels.append(bytes[start])
            }
        }
        try self.init(width: width, height: height, pixels: pixels)
    }
}
#endif
