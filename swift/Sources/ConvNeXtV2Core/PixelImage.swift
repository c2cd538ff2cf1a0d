import Foundation

/// An image in memory: 8 bits each of red, green and blue, row by row from the top.
public struct PixelImage: Equatable, Sendable {
    public let width: Int
    public let height: Int
    /// 3 bytes a pixel, or 4 of which the last is ignored.
    public let bytesPerPixel: Int
    public let pixels: [UInt8]

    /// Pixels of an image at most, unless its reader says otherwise: phones take 200 million.
    public static let mostPixels = 300_000_000

    /// - Throws: ``ConvNeXtV2Error/image(_:)`` where `pixels` has not width x height x bytesPerPixel bytes.
    public init(width: Int, height: Int, bytesPerPixel: Int = 3, pixels: [UInt8]) throws {
        let (area, overflow) = width.multipliedReportingOverflow(by: height)
        guard width > 0, height > 0, !overflow, bytesPerPixel == 3 || bytesPerPixel == 4,
            area <= Int.max / 4, pixels.count == area * bytesPerPixel
        else {
            throw ConvNeXtV2Error.image(
                "an image of \(width) x \(height) pixels needs \(bytesPerPixel) bytes for each, 3 or 4, not \(pixels.count)"
            )
        }
        self.width = width
        self.height = height
        self.bytesPerPixel = bytesPerPixel
        self.pixels = pixels
    }

    /// Red, green, blue and alpha, not multiplied by it: laid over white, as the Python package does.
    public init(width: Int, height: Int, rgba: [UInt8]) throws {
        try self.init(width: width, height: height, bytesPerPixel: 4, pixels: rgba)
        self = try PixelImage(width: width, height: height, pixels: Self.overWhite(rgba))
    }

    /// One byte a pixel.
    public init(width: Int, height: Int, grey: [UInt8]) throws {
        try self.init(width: width, height: height, pixels: grey.flatMap { [$0, $0, $0] })
    }

    /// (height, width, 4) -> (height, width, 3), with the rounding of Pillow's `alpha_composite`.
    private static func overWhite(_ rgba: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(rgba.count / 4 * 3)
        for start in stride(from: 0, to: rgba.count, by: 4) {
            let alpha = UInt32(rgba[start + 3])
            for channel in 0..<3 {
                let mixed = (UInt32(rgba[start + channel]) * alpha + 255 * (255 - alpha)) * 128 + 0x4000
                result.append(UInt8(((mixed >> 8) + mixed) >> 15 & 255))
            }
        }
        return result
    }

    /// The image in grey, three equal bytes a pixel, as Pillow converts to "L".
    func inGrey() throws -> PixelImage {
        var result: [UInt8] = []
        result.reserveCapacity(width * height * 3)
        for start in stride(from: 0, to: pixels.count, by: bytesPerPixel) {
            let red = UInt32(pixels[start]) * 19_595
            let green = UInt32(pixels[start + 1]) * 38_470
            let blue = UInt32(pixels[start + 2]) * 7_471
            let grey = UInt8((red + green + blue + 0x8000) >> 16)
            result += [grey, grey, grey]
        }
        return try PixelImage(width: width, height: height, pixels: result)
    }
}

#if !canImport(ImageIO)
extension PixelImage {
    /// Read a binary PPM file ("P6" with 8 bits a channel), where there is no ImageIO.
    public init(contentsOf url: URL, mostPixels: Int = PixelImage.mostPixels) throws {
        let data = [UInt8](try read(url, most: mostPixels * 3 + 100))
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
        else { throw ConvNeXtV2Error.image("\(url.path) is no PPM file, the one kind of image that is read here") }
        try self.init(width: width, height: height, pixels: Array(data[(position + 1)...]))
    }
}
#endif
