import CConvNeXtV2Image

/// Pillow's resizing: the filters through the C++ that the graphs' library uses, and nearest, which that leaves out.
extension ConvNeXtImageProcessor {
    /// The order of rows and columns is that of this major version of Pillow.
    static let pillow: Int32 = 13

    /// The image at `size` x `size`, 3 bytes a pixel, or as it is without `doResize`.
    func resized(_ image: PixelImage) throws -> PixelImage {
        guard doResize else { return image }
        let whole = try wholeSize(image)
        let evenly = cropMode != .bySize
        if resample == 0 {
            return try nearest(
                image, whole: whole, left: Self.margin(whole.width - size, toEven: evenly),
                top: Self.margin(whole.height - size, toEven: evenly))
        }
        var how = convnextv2_preparation()
        how.resizes = 1
        how.filter = Int32(resample)
        how.pillow = Self.pillow
        how.crop_width = size
        how.crop_height = size
        how.halves_to_even = evenly ? 1 : 0
        how.width = whole.width
        how.height = whole.height
        var result = [UInt8](repeating: 0, count: size * size * 3)
        let status = image.pixels.withUnsafeBufferPointer { pixels in
            var view = convnextv2_image(
                pixels: pixels.baseAddress, width: image.width, height: image.height,
                row_bytes: image.width * image.bytesPerPixel, pixel_bytes: image.bytesPerPixel)
            return convnextv2_prepare(&view, &how, &result)
        }
        guard status == CONVNEXTV2_OK else { throw ConvNeXtV2Error.image(String(cString: convnextv2_message())) }
        return try PixelImage(width: size, height: size, pixels: result)
    }

    /// The size of the whole image before the middle is cut out.
    ///
    /// A strip of one pixel by a few thousand would become gigabytes when its short side is resized: it is refused, and
    /// so is Pillow's step on the way, only the width changed.
    private func wholeSize(_ image: PixelImage) throws -> (width: Int, height: Int) {
        let (width, height) = unlimitedSize(image)
        guard width * max(height, image.height) <= Self.mostResizedPixels else {
            throw ConvNeXtV2Error.image(
                "an image of \(image.width) x \(image.height) pixels is too narrow to be resized: crop it first")
        }
        return (width, height)
    }

    private func unlimitedSize(_ image: PixelImage) -> (width: Int, height: Int) {
        if cropMode == .bySize && size >= Self.warpSize { return (size, size) }
        let narrow = Int(Double(size) / cropPct)
        if cropMode == .squash { return (narrow, narrow) }
        let (small, large) = (min(image.width, image.height), max(image.width, image.height))
        // Divided as numbers of 53 bits and cut to a whole number, as Python does.
        let wide = Int(Double(narrow * large) / Double(small))
        return image.width <= image.height ? (narrow, wide) : (wide, narrow)
    }

    /// The part of an image that the model sees.
    public func region(of image: PixelImage) throws -> ImageRegion {
        guard doResize else { return ImageRegion(x: 0, y: 0, width: 1, height: 1) }
        let whole = try wholeSize(image)
        let evenly = cropMode != .bySize
        let (width, height) = (Double(whole.width), Double(whole.height))
        return ImageRegion(
            x: Double(Self.margin(whole.width - size, toEven: evenly)) / width,
            y: Double(Self.margin(whole.height - size, toEven: evenly)) / height,
            width: Double(size) / width, height: Double(size) / height)
    }

    private static func margin(_ both: Int, toEven: Bool) -> Int {
        toEven && both % 4 == 3 ? both / 2 + 1 : both / 2
    }

    private func nearest(_ image: PixelImage, whole: (width: Int, height: Int), left: Int, top: Int) throws
        -> PixelImage
    {
        let columns = Self.places(image.width, whole.width)[left..<left + size]
        let rows = Self.places(image.height, whole.height)[top..<top + size]
        var pixels: [UInt8] = []
        pixels.reserveCapacity(size * size * 3)
        for row in rows {
            for column in columns {
                let start = (row * image.width + column) * image.bytesPerPixel
                pixels += image.pixels[start..<start + 3]
            }
        }
        return try PixelImage(width: size, height: size, pixels: pixels)
    }

    /// The place that each output pixel is taken from; Pillow adds up the steps, rather than multiply.
    private static func places(_ input: Int, _ output: Int) -> [Int] {
        let step = Double(input) / Double(output)
        var place = step * 0.5
        return (0..<output).map { _ in
            defer { place += step }
            return min(Int(place), input - 1)
        }
    }
}

/// A part of an image, in parts of its width and height from the top left.
public struct ImageRegion: Equatable, Sendable {
    public let x: Double
    public let y: Double
    public let width: Double
    public let height: Double
}
